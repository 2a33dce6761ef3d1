"""``surge-det benchmark train`` as a script."""

from surge_det.cli.main import script

if __name__ == '__main__':
    script('benchmark', 'train')
