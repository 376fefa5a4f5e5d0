"""Files that are copied into the folders of such models and run in the server, with numpy and one package each."""
