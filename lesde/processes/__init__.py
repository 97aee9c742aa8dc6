"""Dynamics, one per file, all processes that `lesde.simulate` runs.

`process` says what a process is. The LE-SDE has four: `exact` draws from its law, `torchsde` integrates
it, `sgd` runs the discrete process, and `particles` carries every sample where it must; `engines` chooses among them.
"""
