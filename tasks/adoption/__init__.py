"""Taking over a server that somebody runs by hand, as it runs.

launch.py       what is run: words, variables, folder, paths, and where each was said
variables.py    files of variables and `${VAR:-default}`, as docker, compose and systemd read them
shell.py        one line of a shell
words.py        a command line, behind nice, env, sudo, sh -c
containers.py   docker run and podman run, and what the llama.cpp images begin with
compose.py      a service of a compose file
unit.py         a unit of systemd
running.py      a server that answers at an address
"""
