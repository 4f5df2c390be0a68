"""The command `tare`: parses words, talks Docker's REST to the daemon, copies streams. Runs as the user.

Stdlib only, knows no other room. Start-up time is its main cost (8 of ~10 ms are the interpreter's), so no module
here imports argparse, socket, json, http.client, typing, dataclasses, logging, enum, re or pathlib at its top:
`_socket`, `_json` and `_signal` are the C halves of the same modules. tests/unit/test_cli_imports.py holds the line.

Reading order: main.py (table of commands), options.py (flags), client.py (HTTP), streams.py (the copy loop), run.py.
"""
