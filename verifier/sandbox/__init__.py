"""The sandbox: a warm server process forks one confined child per job.

`zygote.py` is the client, `server.py` the warm process, `job.py` what a child does, `confine.py` the order in
which the layers go on and what they do not protect against, `limits.py` the caps of one job.
"""
