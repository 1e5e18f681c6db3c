"""torchrun itself, in a process that has imported PyTorch already."""

from torch.distributed.run import main

main()
