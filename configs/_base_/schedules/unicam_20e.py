# UniCAM's training (Adhane et al., WACV 2025, by the authors' code): SGD without decay of weights or
# rate. Students of PetImages and CIFAR-10 have 25 epochs.
optim_wrapper = dict(optimizer=dict(type='SGD', lr=1e-3, momentum=0.9))
train_cfg = dict(by_epoch=True, max_epochs=20, val_interval=1)
val_cfg = dict()
test_cfg = dict()
