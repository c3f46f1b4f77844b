"""The scripted expert: ground truth in, subtask and action chunk out, in the same form as a policy's."""
