"""What ``python -m txsmtpd`` runs; see :mod:`txsmtpd.main`."""

from txsmtpd.main import main

if __name__ == "__main__":
    main()
