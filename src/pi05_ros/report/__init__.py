"""What happened in a run: the log, the figures of report.json, the page and the film. Free of ROS."""
