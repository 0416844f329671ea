"""The interoperability laboratory: what targets do with offloads, and what becomes of replicas when a splitter misses them.

A host's side alone: an iSCSI initiator (`pdu`, `chap`, `session`, `cdb`, `sense`), a LUN as a host knows it (`advertised`, `device`), a
hypervisor's data mover (`settings`, `datamover`, `vmfs`, `operations`), and what is found out with them: of any target (`scratch`, `probe`), and of
splitters and their replicas (`arrangement` and one file for each, `matrix`, `page`). Nothing of the service imports anything of it.
"""
