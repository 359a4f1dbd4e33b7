"""`python -m srgan_fast` is the command: torchrun starts ranks by the name of a module."""

from srgan_fast.cli import main

if __name__ == "__main__":
    main()
