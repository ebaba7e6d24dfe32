"""One attack a file, each tested to succeed on an undefended target."""
