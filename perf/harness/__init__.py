"""What a study is built on: cell, window, data frame, report.

A *cell* is one route under one load. A *window* is one measurement of a cell: the load is sent, and what it cost
the server meanwhile is read. A *round* visits every cell once; each cell gets a window per round. The windows are
dictionaries, lines of a journal from which an interrupted run goes on. At the end one pandas *frame* has a row per
cell with medians over its rounds; tables, targets, plots and files are read from that frame.

A study uses:

- `serving`: `Cell`; `reach_of` for the exit mix that rows are made for; `BenchTools` make a scenario (`tools_of`
  by name); `serving` alone where a study sends its own load.
- `run`: `RunOptions` and `begin`, then `run_scenario` for each scenario (a server of its own, every round), then
  `results_from` them.
- `windows`: `Journal` for windows of a study's own.
- `frame`: `find_cell`, `figure` and `ratio` on the frame; `TargetVerdict`; `write_tables`.
- `report`: tables in markdown and for the console, `progress_shown`, `show`, `command_line`, `draw_plots`.
- `machine`: `bench_machine` or `machine_here` for results, `first_gpu`, `write_json`.
- `server_probe`: processor time, memory and Triton's statistics.
"""
