"""Whose work it is that keeps a GPU busy: ours, the online side's, and what nobody has declared.

`jobs` reads the offline side's pages and `busy` measures it by them; `processes` sorts the processes on the GPU;
`online` estimates what the online side uses.
"""
