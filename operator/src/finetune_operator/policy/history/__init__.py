"""What is counted of ended pods: runs, their times and counters, and what the next attempt avoids."""
