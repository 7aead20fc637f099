"""Nothing but its place: pytest puts the folder of a conftest.py on the path of imports, so that tests in folders
below find gateways.py and its like, even where they are the only ones that run."""
