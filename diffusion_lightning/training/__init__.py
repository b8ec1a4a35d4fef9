"""What turns the mathematics into a run that can be stopped anywhere and go on."""
