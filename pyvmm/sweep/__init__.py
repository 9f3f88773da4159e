"""The same guest on many machines: every set of vector lengths, every host setting.

``plan`` makes the runs, ``work`` performs one, ``crew`` has the executors, ``drive`` submits the
runs and judges them, ``report`` writes the results.
"""
