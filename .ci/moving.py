"Write nbs/images/moving.gif: what README shows first, drawn from the network of the zoo that the start page has."
import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent

WHICH = (0, 1, 4)  # eigenvectors, counted from 0


def pictures():
    sys.path.insert(0, str(root))
    from hessnb import HessianOperator, Objective, top_eigenpairs
    from hessnb.paper.data import load_data
    from hessnb.paper.zoo import find_minimum
    from hessnb.show.moving import MovingPictures
    data = load_data("gauss")
    objective = Objective(find_minimum("normal", data).model, (data.X_train, data.y_train))
    pairs = top_eigenpairs(HessianOperator(objective), 5, tol=1e-3)
    return MovingPictures(objective, pairs, class_names=data.class_names)


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else root / "nbs/images/moving.gif"
    pictures().gif(path, which=WHICH, force=True)
    print(path, path.stat().st_size, "bytes")
