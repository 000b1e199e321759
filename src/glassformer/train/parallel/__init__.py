"""Many ranks, on torch.distributed: the only folder of this room that knows it, with `launch.py`."""
