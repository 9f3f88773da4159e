"""The same guest on many machines: every set of vector lengths, every host setting.

``plan`` says which runs there are, ``work`` does one, ``crew`` is who does them, ``drive`` sees
them through, ``report`` tells of them.
"""
