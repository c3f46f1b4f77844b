"""The ROS 2 nodes: thin shells over the plain-Python logic of `pi05_ros`. Only this package imports rclpy."""
