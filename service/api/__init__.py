"""The routes: one module a kind of thing that is asked for."""
