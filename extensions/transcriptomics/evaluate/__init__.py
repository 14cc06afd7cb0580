"""What fine-tuning on expression was good for: the poster's table, retrieval, its last figure."""
