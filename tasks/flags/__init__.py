"""llama-server's options: what a build takes, what upstream called them in other builds, what a command line says.

flag.py      one option, as `--help`, the README or the source tells it
table.py     the options of one build, looked up by name and by variable
history.py   what upstream renamed and removed (history.toml), so that an old word can be said in a new build's words
words.py     words and variables -> what they say, and what is wrong with them
"""
