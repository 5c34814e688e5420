"""What ``python -m txsmtpd`` runs; see :mod:`txsmtpd.main`."""

from txsmtpd.main import run

if __name__ == "__main__":
    run()
