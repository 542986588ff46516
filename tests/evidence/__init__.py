"""What trained runs are measured for, and the pages and pictures made of it."""
