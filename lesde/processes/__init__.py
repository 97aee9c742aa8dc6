"""Dynamics, one per file, all processes that `lesde.simulate` runs.

`process` says what a process is. The LE-SDE is one in four ways: by its `exact` law, integrated by
`torchsde`, by `sgd`, and by `particles` where every sample has to be carried; `engines` chooses among them.
"""
