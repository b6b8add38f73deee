"""Units: everything inside is seconds, bytes and tokens; literals say their unit (``30 * ms``)."""

Seconds = float
Bytes = float
Tokens = int
BytesPerSecond = float

us = 1e-6
ms = 1e-3

KiB = 1024.0
MiB = 1024.0 * KiB
GiB = 1024.0 * MiB

MB = 1e6
GB = 1e9
TB = 1e12

Gbps = 1e9 / 8  # gigabits per second, as bytes per second
TFLOPS = 1e12
