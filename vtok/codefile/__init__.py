"""Codes to bytes and back: the `.vtok` file, specified to the byte in docs/format.md.

Reading order: `header`, `records` (preamble, chunk heads, footer), `packing` (codes of a chunk),
`entropy` and `probability` (entropy coder), `writer`, `index` (random access), `reader`, `edit`
(cut and join), `dump`.
"""
