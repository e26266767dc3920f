"""SHOW: what people see: the only room that knows Rich."""
