"""virtio: queues, the devices behind them, and the transport a guest reaches them by."""
