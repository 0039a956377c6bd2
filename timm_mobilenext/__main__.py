"""`python -m timm_mobilenext`: say what is installed and where weights would come from."""
import sys

from timm_mobilenext.doctor import main

if __name__ == '__main__':
    sys.exit(main())
