"""What a student is worth: rollouts of whole episodes, numbers, pages, films."""
