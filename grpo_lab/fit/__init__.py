"""Know before you run: which layouts fit, how fast each would be, and how sure that is.

Arithmetic on a config and a description of the hardware: `hardware` (cards), `workload` (what is asked, in numbers),
`memory` and `speed` (the formulas), `verdict` and `candidates` (every layout, judged), `measurements` and `calibration`
(coefficients from runs), `check` (what runs inside every command), `choice` (`layout=auto`), `table` (for a reader).
"""
