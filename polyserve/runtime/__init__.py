"""What travels inside every deployed function. Standard library only; numpy and the framework come through the loader."""
