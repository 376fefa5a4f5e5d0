"""What is measured: each study is a configuration, its measurement and its text."""
