"""What finds better numbers for a plan's integers, from unlabelled calibration images alone; nothing is compiled."""
