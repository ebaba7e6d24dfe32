"""What a protected text is still good for: three kinds of task, each a score in [0, 1] per item.

`frontier` sets the utility of tasks beside what an attack recovers, for words and for words+obfuscation.
Importing this room loads no model library.
"""
