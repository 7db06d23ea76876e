"""What runs on the other machine: sent there as one zip, with nothing but the standard library of Python 3.11.

`python HOST.pyz OPERATION` reads one request on its standard input and answers on its standard output (`wire`). It is told
what to do by the person who owns both machines; what it answers is believed by nobody (see `unmask.remote.returning`).
"""
