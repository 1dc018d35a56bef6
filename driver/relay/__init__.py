"""The relay: serves published ports that the kernel cannot translate, one process for all.

A process of its own that outlives the driver: `__main__` is its beginning, `wire` how the driver
speaks to it, `relay` what it does then, `tcp` and `udp` how bytes get through. Nothing in here
imports anything else of pynet, or what costs memory: typing, dataclasses, ipaddress, json, logging.
"""
