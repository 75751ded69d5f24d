"""What generated kernels do, seen without a GPU. Tests and benches look; nothing that users run does.

record           launches, noted down instead of run
traffic          bytes that are moved, counted address by address in Triton's interpreter
cubin            kernels compiled for GPUs that are not there: registers, stack, shared memory, occupancy
assembly         what PTX, SASS and AMD's assembly say
subprocess_call  a call in a process that interprets, or one that compiles: Triton is either for good
"""
