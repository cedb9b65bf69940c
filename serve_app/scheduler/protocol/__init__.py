"""What goes between the scheduler and its clients and replicas: messages, and views of the cluster."""
