"""Know before you run: which layouts fit, how fast each would be, and how sure that is.

Pure arithmetic on a config and a description of the hardware: `hardware` (cards), `workload` (what is asked, in numbers),
`memory` and `speed` (the formulas), `layouts` (every layout, judged), `calibration` (coefficients from measurements),
`check` (the part of it that runs inside every command), `choice` (`layout=auto`), `table` (what a reader sees).
"""
