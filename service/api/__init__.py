"""The routes below ``/v1``: one module a kind of thing that is asked for."""
