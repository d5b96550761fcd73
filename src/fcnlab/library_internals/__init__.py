"""The private members of other packages that fcnlab has to touch: here, and nowhere else.

A private member may change with any release. So each stands in a small function or class that says what it does, why no
public one does it, and which versions it was seen to work with; a test of the same name holds it against the library
itself. After an upgrade, ``tests/library_internals`` is where it fails. Modules are named after the library that they
import, so that a command imports no more than it uses.
"""
