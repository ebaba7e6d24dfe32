"""What audits and scans report: findings with their intervals, the runner, and pages for people and tools."""
