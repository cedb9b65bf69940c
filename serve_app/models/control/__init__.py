"""ControlNets, T2I-Adapters and model patches: networks whose output is added inside a backbone."""
