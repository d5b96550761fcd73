"""Private members of libraries that fcnlab uses, wrapped here and used nowhere else.

A private member may change with any release. So each has a small wrapper, whose docstring says what it does, why no
public member does it, and with which versions it was tested. ``tests/library_internals`` tests each wrapper against the
library itself, so an upgrade that breaks one fails there. Each module imports only the library that it is named after,
so a command imports no more than it uses.
"""
