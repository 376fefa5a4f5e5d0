"""What a study is built on: cell, window, data frame, report.

A *cell* is one route under one load (`cells.Cell`). A *window* is one measurement of a cell: the load is sent, and
what it cost the server meanwhile is read. A *round* visits every cell once; each cell gets a window per round. The
windows are rows of a journal, a file of JSON lines from which an interrupted run goes on. At the end one pandas
*frame* has a row per cell with medians over its rounds; tables, targets, plots and files are read from that frame.

A study uses:

- `cells`: `Cell`, and `reach_of` for the exit mix that rows are made for.
- `run`: `RunOptions` and `begin`, then `run_scenario` per scenario (a server of its own, every round) and
  `results_from`. `serving` alone where a study sends its own load.
- `windows`: `Journal` for windows of a study's own; a window is a plain dictionary.
- `frame`: `cell_frame` and `find_cell`; `ratio` of two figures.
- `report`: tables in markdown and for the console, `number_text`, `progress_shown`.
- `plots`: `new_figure`, `save_figure` and the colour of each route.
- `machine`: `bench_machine` for results, `gpus_here`, `write_json`.
- `server_probe`: processor time, memory, Triton's statistics and its metrics endpoint.
"""
