"""One file per verb; no arithmetic: what a verb shows is the return value of a public function."""
